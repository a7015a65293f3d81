"""What depends on a run and is settled as it begins: layout, how probes are taken, the rate."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from zopeft.blocks.shards import how_sharded
from zopeft.errors import input_error
from zopeft.optim.differing import find_eps
from zopeft.probing.batch_loss import BatchLoss
from zopeft.probing.packed import PADDED, laid_out
from zopeft.probing.trial import Choice
from zopeft.training.layout import AS_BEGUN, first_choice
from zopeft.training.making import first_batch
from zopeft.training.parallel import Parallel

if TYPE_CHECKING:
    from zopeft.training.trainer import ZOTrainerMixin

logger = logging.getLogger(__name__)


def settle(trainer: ZOTrainerMixin, method: Any) -> None:
    """Settles what a method's steps depend on, before the schedule is made.

    A schedule multiplies the rate that it finds. A run that is resumed from its journal takes
    layout and rate from there, and from a checkpoint alone all of it.

    Args:
        trainer: The trainer.
        method: Its method, of any order.
    """
    journal, resumed = trainer.recording.journal, trainer.resumed
    if trainer.args.order == 0:
        share_out(trainer, method)
        if journal is not None:
            settings = journal.header.settings
            method.probing.most_tokens = settings.get("stacked_tokens", 0)
            method.probing.twins_together = settings.get("twins_together", False)
            method.clip.taming = settings.get("taming", False)
        trainer.layout = _layout(trainer, method)
        method.probing.layout = trainer.layout.way
        method.probing.steps_planned = trainer.steps_planned
        _settle_eps(trainer, method)
    trainer.on_settled()
    if not getattr(method, "auto", False):
        return
    if journal is not None:
        method.begin_rate(journal.header.rate, journal.header.learning_rate)
    elif resumed is None or resumed.checkpoint is None:
        trainer.model.eval()
        method.settle(closure(trainer, trainer.model, _first(trainer)))
        logger.info("learning rate: %s", method.lr_reason)


def _settle_eps(trainer: ZOTrainerMixin, method: Any) -> None:
    """Chooses the finite-difference step of a score, where none is given; a resumed run has one."""
    if trainer.args.eps is not None or not getattr(trainer.loss_function, "flat", False):
        return
    journal = trainer.recording.journal
    if journal is not None:
        method.eps = float(journal.header.settings.get("eps", method.eps))
    elif trainer.resumed is not None:
        # What the checkpoint holds is about to be loaded.
        method.eps_open = True
    else:
        trainer.model.eval()
        first = closure(trainer, trainer.model, _first(trainer))
        found = find_eps(method, first, trainer.on_looking)
        method.eps = trainer.ranks.said(found.eps)
        method.forward_passes += found.forward_passes
        trainer.differing = found
        logger.log(logging.INFO if found.share else logging.WARNING, "%s", found.line)


def closure(trainer: ZOTrainerMixin, model: Any, batch: Any) -> BatchLoss:
    """Returns the loss of a batch, laid out as the run's are."""
    loss, way = trainer.process_loss, trainer.method.probing.layout
    return BatchLoss(model, laid_out(model, batch, loss, way), loss)


def _layout(trainer: ZOTrainerMixin, method: Any) -> Choice:
    """Returns how batches are laid out: tried out for a new run, and else as it began."""
    journal = trainer.recording.journal
    if journal is not None:
        return Choice(str(journal.header.settings.get("layout", PADDED)), AS_BEGUN)
    if trainer.resumed is not None:
        # What the checkpoint holds is about to be loaded.
        return Choice(method.probing.layout, AS_BEGUN)
    trainer.model.eval()
    return first_choice(trainer, trainer.process_loss, lambda: _first(trainer))


def _first(trainer: ZOTrainerMixin) -> Any:
    """Returns the first batch, on its device."""
    return trainer._prepare_inputs(first_batch(trainer))


def share_out(trainer: ZOTrainerMixin, method: Any) -> None:
    """Has the processes of a run share the work of a method's steps."""
    held = how_sharded(trainer.model)
    if held and trainer.args.parallel != "rows":
        what = f"cannot be shared out where processes hold the model together ({held})"
        raise input_error("parallel", what, trainer.args.parallel, "leave it at rows")
    if trainer.args.parallel != "rows":
        # In a forward with others a probe has other bits than alone.
        method.probing.most_tokens = 0
    ranks = trainer.ranks
    if not ranks.several:
        return
    loss: Any = getattr(trainer.loss_function, "function", trainer.loss_function)
    if getattr(loss, "shaping", "") == "rows":
        what = "compares the scores of single rows, which one process has seen"
        raise input_error("shaping", what, "rows", "use ranks, or one process")
    grid = trainer.grid
    if grid.line and ranks.leads:
        logger.warning("%s", grid.told)
    if held:
        return
    method.engine.reads.agree = lambda read: ranks.compared(read).amax(0)
    here = trainer.asked
    method.executor = Parallel(method.engine, method.probing, ranks, grid, here)
