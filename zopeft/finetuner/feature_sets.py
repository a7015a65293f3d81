"""Sets of features by name, see `zopeft.finetuner.features`."""

PAPER_FEATURES = ("mean", "variance", "loss_plus", "loss_minus", "scale")
"""The paper's inputs, in the order of the authors' code."""
STATE_FEATURES = ("depth", "loss_share", "change", "log_rms")
"""Where a block and a run stand; made for `BoundedPertNN`. Without the costly `bend`, and
without `log_loss`, which on a task of another loss stands at the end of its range from the
first step on."""
