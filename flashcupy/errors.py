"""Exceptions of flashcupy that are not plain ValueError or TypeError."""


class UnsupportedError(NotImplementedError):
    """A valid request that the backend serving these arrays cannot carry out.

    The message names the argument, the backend and, where there is one, the way round.
    """


class KernelCompileError(RuntimeError):
    """A kernel did not compile.

    Attributes
    ----------
    config : str
        Name of the kernel configuration.
    options : tuple of str
        What the compiler was called with.
    log : str
        What it said.
    source_path : str or None
        Where the translation unit was kept, to look at or to compile by hand.
    """

    def __init__(self, config: str, options: tuple[str, ...], log: str, source_path: str | None = None) -> None:
        self.config, self.options, self.log, self.source_path = config, options, log, source_path
        where = "" if source_path is None else f"; source kept at {source_path}"
        super().__init__(f"kernel {config} does not compile ({' '.join(options)}){where}\n{log}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:  # a process pool breaks on errors that cannot be pickled
        return type(self), (self.config, self.options, self.log, self.source_path)


class NotWarmedUpError(RuntimeError):
    """A configuration was first used inside a CUDA graph capture, where nothing can be compiled or checked.

    Call `flashcupy.warmup` with the same arguments before the capture.
    """


class FirstUseError(RuntimeError):
    """A kernel that compiles and loads failed the check that precedes its first use on a GPU.

    Attributes
    ----------
    kernel : str
        Name of the kernel configuration.
    gpu : str
        Name of the GPU that it ran on.
    reason : str
        What the check found.
    verdict_path : str or None
        The file that keeps the verdict; without it the kernel is checked again.
    """

    def __init__(self, kernel: str, gpu: str, reason: str, verdict_path: str | None = None) -> None:
        self.kernel, self.gpu, self.reason, self.verdict_path = kernel, gpu, reason, verdict_path
        again = "a new process checks it again" if verdict_path is None else f"delete {verdict_path} to check it again"
        super().__init__(f"kernel {kernel} failed its first-use check on {gpu}: {reason}; {again}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.kernel, self.gpu, self.reason, self.verdict_path)
