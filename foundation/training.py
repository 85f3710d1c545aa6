"""The training loop: a Lightning module over numbered steps, optimizers, logs and resume.

A step's batch and everything random in it are a pure function of (seed, step), so that a run that
was killed and resumed from its last state ends at the weights of the uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins import CheckpointIO
from torch.utils.data import DataLoader, IterableDataset

from foundation import strict
from foundation.backbone import RiskBackbone
from foundation.checkpoint import load_state, save_state
from foundation.objectives import Objectives, TrainingBatch
from foundation.shards import Shards

STATE = "trainer.safetensors"
LINE_SECONDS = 15.0


class OptimizerConfig(strict.Strict):
    """AdamW, and Muon for the matrices of the blocks where `muon` is set.

    Attributes:
        lr, weight_decay: of AdamW; tables, norms and biases do not decay.
        muon_lr: of Muon (Jordan 2024), 0 trains every weight by AdamW.
        warmup: share of the steps with rising rate; the rest falls as a cosine to `final`.
        clip: largest gradient norm.
    """

    lr: float = 2e-3
    weight_decay: float = 0.01
    muon_lr: float = 0.0
    warmup: float = 0.05
    final: float = 0.02
    clip: float = 1.0


class StateIO(CheckpointIO):
    """Trainer states as safetensors and JSON (foundation.checkpoint)."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_state(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_state(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Steps(IterableDataset):
    """Batches of the steps first, first + 1, ..., last - 1, each made during the step before."""

    def __init__(self, make: Callable[[int], TrainingBatch], first: int, last: int) -> None:
        self.make, self.first, self.last = make, first, last

    def __iter__(self) -> Iterator[TrainingBatch]:
        with ThreadPoolExecutor(1, thread_name_prefix="batch") as ahead:
            coming = None
            for step in range(self.first, self.last):
                batch = coming.result() if coming is not None else self.make(step)
                coming = ahead.submit(self.make, step + 1) if step + 1 < self.last else None
                yield batch


class PretrainingModule(pl.LightningModule):
    """Backbone and objectives under Lightning."""

    def __init__(
        self,
        model: RiskBackbone,
        objectives: Objectives,
        optimizer: OptimizerConfig,
        steps: int,
        seed: int,
        shards: int = 1,
    ) -> None:
        """`shards`: parts of a batch to work on side by side, see `pretrain_config.shards_of`."""
        super().__init__()
        self.model, self.objectives = model, objectives
        self.settings, self.steps, self.seed = optimizer, steps, seed
        self.shards = Shards(shards) if shards > 1 else None

    def training_step(self, batch: TrainingBatch, index: int) -> torch.Tensor:
        torch.manual_seed(self.seed * 1_000_003 + batch.seed)
        if self.shards is not None:
            losses = self.shards.losses(self.objectives, self.model, batch)
        else:
            losses = self.objectives(self.model, batch)
        self._log("train", losses, batch)
        self.log("events", float(batch.length.sum()), batch_size=len(batch.length))
        return losses["loss"]

    def validation_step(self, batch: TrainingBatch, index: int) -> None:
        self._log("validation", self.objectives(self.model, batch), batch)

    def _log(self, stage: str, losses: dict[str, torch.Tensor], batch: TrainingBatch) -> None:
        values = {f"{stage}/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(
            values,
            batch_size=len(batch.length),
            on_step=stage == "train",
            on_epoch=stage != "train",
        )

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = make_optimizer(self, self.settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(step, self.steps, self.settings)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the learning rate at a step: linear warmup, then a cosine down to `final`."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some weights and AdamW for the rest, as one optimizer with one state.

    The weights of Muon stand in two groups that are worked on side by side with each other and
    with AdamW: its products are too small for two threads inside one.
    """

    def __init__(self, matrices: list, rest: list[dict], config: OptimizerConfig) -> None:
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                half,
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            for half in (matrices[::2], matrices[1::2])
            if half
        ]
        self.parts.append(torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.98), fused=True))
        super().__init__([g for part in self.parts for g in part.param_groups], {})
        self._pool = ThreadPoolExecutor(
            len(self.parts), "optimizer", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._share()

    def _share(self) -> None:
        """One list of groups and one state, seen by all inner optimizers."""
        *muons, adam = self.parts
        for group, muon in zip(self.param_groups, muons, strict=False):
            muon.param_groups = [group]
            muon.state = self.state
        adam.param_groups = self.param_groups[len(muons) :]
        adam.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore, and tie the inner optimizers to what was restored."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of all."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for done in [self._pool.submit(part.step) for part in self.parts]:
            done.result()
        return loss


def make_optimizer(module: PretrainingModule, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Weights in groups: matrices decay; tables, norms, biases and heads' vectors do not."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    tables = {
        id(p) for m in module.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()
    }
    matrices = [p for n, p in named if p.ndim == 2 and id(p) not in tables]
    flat = [p for n, p in named if p.ndim != 2 or id(p) in tables]
    if not config.muon_lr:
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": flat, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    blocks = {id(p) for p in module.model.blocks.parameters() if p.ndim == 2}
    rest = [
        {
            "params": [p for p in matrices if id(p) not in blocks],
            "weight_decay": config.weight_decay,
        },
        {"params": flat, "weight_decay": 0.0},
    ]
    return MuonAdamW([p for p in matrices if id(p) in blocks], rest, config)


class Progress(Callback):
    """Reports steps as they are done, and a plain line every few seconds."""

    def __init__(
        self, say: Callable[[str], None], count: Callable[[int, int], None] | None = None
    ) -> None:
        self.say, self.count, self.events = say, count, 0.0
        self.begun = self.told = time.monotonic()
        self.first: int | None = None

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: TrainingBatch, batch_idx: int
    ) -> None:
        done, steps, now = trainer.global_step, trainer.max_steps, time.monotonic()
        if self.count is not None:
            self.count(done, steps)
        if self.first is None:
            self.first, self.begun = done, now
            return
        self.events += float(batch.length.sum())
        if now - self.told < LINE_SECONDS and done < steps:
            return
        self.told, elapsed = now, max(now - self.begun, 1e-9)
        left = (steps - done) * elapsed / (done - self.first)
        self.say(
            f"step {done:,} of {steps:,}, {self.events / elapsed:,.0f} events/s, "
            f"{left:,.0f} s left, loss {float(trainer.callback_metrics['train/loss']):.4f}"
        )


class KeepState(Callback):
    """Writes the trainer state every few steps, replacing the last one."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every and trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.path)


class Curve(Callback):
    """Validation losses by step, for run.json; survives a resume."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.sanity_checking:
            return
        row = {"step": float(trainer.global_step)}
        for name, value in trainer.callback_metrics.items():
            if name.startswith("validation/"):
                row[name.removeprefix("validation/")] = round(float(value), 6)
        if not self.rows or self.rows[-1]["step"] != row["step"]:
            self.rows.append(row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


def train(
    module: PretrainingModule,
    batch_of: Callable[[int], TrainingBatch],
    validation: Sequence[TrainingBatch],
    work: Path,
    steps: int,
    checkpoint_every: int,
    validate_every: int,
    precision: str,
    products: str,
    devices: int,
    resume: bool,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, float]]:
    """Run the steps that are left.

    Args:
        work: directory of the trainer state and the logs.
        resume: continue from the state in `work`, if there is one.

    Returns:
        The validation curve: step and losses.
    """
    state = work / STATE
    first = int(load_state(state)["global_step"]) if resume and state.is_file() else 0
    part = f"-from-{first}" if first else ""
    curve = Curve()
    quiet = logging.getLogger("pytorch_lightning")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    threads, before_products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    if module.shards is not None:
        torch.set_num_threads(1)
    try:
        torch.set_float32_matmul_precision("medium" if products == "bfloat16" else "highest")
        with warnings.catch_warnings():
            _expected_warnings()
            trainer = pl.Trainer(
                max_steps=steps,
                max_epochs=-1,
                precision=precision,
                devices=devices,
                accelerator="auto",
                plugins=[StateIO()],
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
                num_sanity_val_steps=0,
                gradient_clip_val=module.settings.clip,
                use_distributed_sampler=False,
                check_val_every_n_epoch=None,
                log_every_n_steps=10,
                val_check_interval=min(validate_every, steps) if validation else None,
                limit_val_batches=len(validation) if validation else 0,
                logger=[
                    CSVLogger(str(work), name="logs", version=f"csv{part}"),
                    TensorBoardLogger(str(work), name="logs", version=f"tensorboard{part}"),
                ],
                callbacks=[curve, *callbacks, KeepState(state, checkpoint_every)],
            )
            if first < steps:
                trainer.fit(
                    module,
                    DataLoader(Steps(batch_of, first, steps), batch_size=None),
                    DataLoader(list(validation), batch_size=None) if validation else None,
                    ckpt_path=str(state) if first else None,
                )
    finally:
        quiet.setLevel(before)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(before_products)
        if module.shards is not None:
            module.shards.close()
    return curve.rows


def _expected_warnings() -> None:
    """Notices of Lightning about what is on purpose here: no workers, steps as data."""
    for text in (
        ".*num_workers.*",
        ".*IterableDataset.*",
        ".*does not have many workers.*",
        ".*`__len__`.*",
        ".*Checkpoint directory.*",
        ".*logger.*",
        ".*mid-epoch.*",
        ".*LeafSpec.*",
        ".*srun.*",
        ".*GPU available.*",
    ):
        warnings.filterwarnings("ignore", message=text)
