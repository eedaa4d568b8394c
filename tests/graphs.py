"""Small graphs that several tests plan and run."""

from mkc.ir.builder import Builder
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call, Const
from mkc.ir.graph import Graph, Kind


def doubled_and_summed() -> Graph:
    """y = W h + h, h = 2 x: h is read whole and by tile."""
    b = Builder("chain")
    x, w = b.input("x", (1, 256), DType.F32), b.input("w", (256, 256), DType.F32, Kind.PARAM)
    h = b.emit("linear", (x, w), (1, 256), DType.F32, epilogue=Call("mul", (Arg(0), Const(2.0))))
    return b.finish((b.emit("linear", (h, w, h), (1, 256), DType.F32, epilogue=Call("add", (Arg(0), Arg(1)))),))


def counter() -> Graph:
    """Adds one to n and 1 to each of 64 sums, until n is 5."""
    b = Builder("counter")
    n, stop = b.input("n", (), DType.I64, Kind.STATE), b.input("stop", (), DType.BOOL, Kind.STATE)
    sums = b.input("sums", (64,), DType.F32, Kind.STATE)
    plus_one = Call("add", (Arg(0), Const(1)))
    b.append("elementwise", (sums,), (sums,), expr=plus_one)
    b.append("elementwise", (n,), (n,), expr=plus_one)
    b.append("elementwise", (n,), (stop,), expr=Call("ge", (Arg(0), Const(5))))
    return b.finish((), loops=True, until=stop)
