"""Quiet: libraries say nothing while they load or run; zopeft reports instead."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from typing import TextIO

from zopeft.errors import ZopeftWarning

LIBRARIES = ("transformers", "peft", "bitsandbytes", "accelerate", "huggingface_hub", "datasets")
"""Loggers that are lowered to errors."""

_TOLD_BY_TRANSFORMERS = re.compile(
    "we will NOT tie them|incorrect regex pattern|rope_parameters|may result in unexpected|"
    "seem corrupted|is unrecognized"
)
"""What of its log bears on what a loaded model computes."""

_LEFT_OUT = re.compile(
    "fan_in_fan_out|a tied layer is part of the adapter|Unsupported layer type|"
    "load the CUDA extension|boft_n_butterfly_factor"
)
"""What PEFT sets right by itself, and what zopeft says in its own words."""

_LONGEST = 240


@contextlib.contextmanager
def quiet(relay: bool = False) -> Iterator[None]:
    """Inside, the libraries' warnings, log lines and progress bars are off.

    All of it is put back at the end. zopeft's own warnings are given then.

    Args:
        relay: Whether those of PEFT and transformers that bear on results are given, too,
            each as a `ZopeftWarning` of one line.
    """
    from transformers.utils import logging as transformers_logging

    # Asking sets transformers' logging up, so that its own level is what is put back.
    transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    heard: list[warnings.WarningMessage] = []
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_lowered(LIBRARIES))
            stack.enter_context(_caught(heard, relay))
            if relay:
                stack.enter_context(_collected("transformers", heard))
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        for one in _once(heard):
            warnings.warn_explicit(one.message, ZopeftWarning, one.filename, one.lineno)


def hush(library: str) -> None:
    """Lowers one library's logger to errors for good.

    For a library that logs at every forward, where a context would have to stay open.
    """
    logging.getLogger(library).setLevel(logging.ERROR)


@contextlib.contextmanager
def _lowered(names: tuple[str, ...]) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _caught(heard: list[warnings.WarningMessage], relay: bool) -> Iterator[None]:
    """Keeps zopeft's warnings, with `relay` PEFT's in one line each, and drops the others."""

    def keep(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, ZopeftWarning):
            if _LEFT_OUT.search(str(message)):
                return
            message = ZopeftWarning(_line("peft", str(message)))
        heard.append(warnings.WarningMessage(message, category, filename, lineno))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ZopeftWarning)
        if relay:
            warnings.filterwarnings("always", category=UserWarning, module=r"peft(\.|$)")
        warnings.showwarning = keep
        yield


@contextlib.contextmanager
def _collected(library: str, heard: list[warnings.WarningMessage]) -> Iterator[None]:
    """Keeps what a library logs that bears on results."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if _TOLD_BY_TRANSFORMERS.search(text):
                told = ZopeftWarning(_line(library, text))
                heard.append(
                    warnings.WarningMessage(told, ZopeftWarning, record.pathname, record.lineno)
                )

    logger = logging.getLogger(library)
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [Collector()], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


def _line(library: str, text: str) -> str:
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
    return f"{library}: {line}"


def _once(heard: list[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    return list({str(one.message): one for one in heard}.values())
