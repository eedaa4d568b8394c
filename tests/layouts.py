"""A page that compiles only where structs lie as they lie in numpy."""

from mkc.ir import program as abi

STRUCTS = {
    "Task": abi.TASK, "Wait": abi.WAIT, "Section": abi.SECTION, "Report": abi.REPORT, "Place": abi.PLACE, "Stamp": abi.STAMP,
    "Entry": abi.ENTRY, "Stream": abi.STREAM, "Launch": abi.LAUNCH,
}  # fmt: skip
CONSTANTS = {"kMaxAxes": abi.MAX_AXES, "kMaxSections": abi.MAX_SECTIONS, "kEventStride": abi.EVENT_STRIDE}
NO_FIELDS = {("Launch", "padding")} | {  # parts of a word have no address
    ("Task", "body"), ("Task", "waits"), ("Stream", "body"), ("Stream", "early"), ("Stream", "awaits"),
}  # fmt: skip


def layout_claims() -> str:
    sizes = [f"sizeof(mkc::{name}) == {dtype.itemsize}" for name, dtype in STRUCTS.items()]
    offsets = [
        f"__builtin_offsetof(mkc::{name}, {field}) == {at}"
        for name, dtype in STRUCTS.items()
        for field, (_, at, *_) in (dtype.fields or {}).items()
        if (name, field) not in NO_FIELDS
    ]
    constants = [f"mkc::{name} == {value}" for name, value in CONSTANTS.items()]
    return "#include <mkc/abi.cuh>\n" + "".join(f"static_assert({claim});\n" for claim in sizes + offsets + constants)
