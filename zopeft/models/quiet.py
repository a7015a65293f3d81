"""Quiet: libraries say nothing while they load or run; zopeft reports instead."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

LIBRARIES = ("transformers", "peft", "bitsandbytes", "accelerate", "huggingface_hub", "datasets")
"""Loggers that are lowered to errors."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, the libraries' warnings, log lines and progress bars are off.

    All of it is put back at the end.
    """
    from transformers.utils import logging as transformers_logging

    # Asking sets transformers' logging up, so that its own level is what is put back.
    transformers_logging.get_verbosity()
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


def hush(library: str) -> None:
    """Lowers one library's logger to errors for good.

    For a library that logs at every forward, where a context would have to stay open.
    """
    logging.getLogger(library).setLevel(logging.ERROR)
