"""Everything mkc raises on purpose. Each message names the node or argument, what was expected, and a way out."""


class MkcError(Exception):
    """The root of the tree: catch this to catch everything below."""


class UnsupportedError(MkcError):
    """No operator of mkc does this. With `fallback="torch"` it runs in PyTorch instead."""


class InputError(MkcError, TypeError):
    """An input has another shape, dtype, device or count than the model was compiled for."""


class OutOfRangeError(InputError, IndexError):
    """An index in an input points outside of the tensor it is for. What the run has written is not to be used."""


class ModelError(MkcError):
    """The model cannot be compiled as it is: training mode, gradients, an untraceable forward."""


class OptionError(MkcError, ValueError):
    """An option that does not exist, or a value it cannot take."""


class TargetError(MkcError):
    """The machine lacks something: no compiler, no GPU, a GPU too old or without room."""


class BuildError(TargetError):
    """The compiler refused the generated page. The message carries its output."""


class PlanError(MkcError):
    """A plan that breaks a rule of the intermediate languages: a bug in mkc, refused before it runs."""


class UnsoundPlan(PlanError):  # noqa: N818  (what it is, as in the design)
    """The checker found a plan that could race, hang or leave its memory. The message shows the tasks and their words."""


class MegakernelHang(MkcError, TimeoutError):  # noqa: N818  (the name of the event, as in the design)
    """A wait passed its deadline. The message names the waiting task and the producers that are missing."""


class MagnitudeError(MkcError, OverflowError):
    """A value inside the kernel was not finite, or too large to be handed from worker to worker."""
