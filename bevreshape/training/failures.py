"""Messages for errors that torch raises during training because of an option."""

import re
from collections.abc import Mapping
from typing import Any

from bevreshape.errors import Divergence, InputError
from bevreshape.training.rehearsal import compile_failure, of_compiler


def explain_failure(error: RuntimeError, trainer: Mapping[str, Any]) -> InputError | None:
    """Return the user error for an error of torch that an option of the trainer causes; ``None`` for any other."""
    text = str(error)
    reason = (text.strip().splitlines() or [type(error).__name__])[0]
    if trainer.get("compile") and of_compiler(error):
        return InputError(compile_failure(error))
    if trainer.get("deterministic") and "deterministic" in text:
        return InputError(
            f"trainer.deterministic={trainer['deterministic']}: {reason}; set trainer.deterministic=false"
        )
    if trainer.get("detect_anomaly") and "returned nan values" in text:
        return Divergence(f"training: {reason}; lower optimizer.lr, or check the batch")
    if "gloo" in text and re.search(r"closed by peer|reset by peer|Timed out waiting", text):
        return InputError(
            "training: another process of this run has ended, so this one cannot continue; the reason is in that "
            "process's messages; run the same command with the same hydra.run.dir to resume"
        )
    if "Expected to have finished reduction" in text:
        return InputError(
            "trainer.strategy: some parameters get a gradient in some steps only; set "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    return None
