"""Reasons of a fine-tuned model, which reads events and not columns.

The effect of a field is the drop in log-odds when it is missing from every event of the history
(or from the profile and context): occlusion by field, in the words of `finetune.reasons`.

Shapes: S samples, G fields, N events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from finetune.features import Histories
from finetune.reasons import Reason
from foundation.tokenizer import Tokenizer


def field_effects(
    tokenizer: Tokenizer, histories: Histories, logit: Callable[[Histories], np.ndarray]
) -> tuple[list[str], list[str], np.ndarray]:
    """Effect of every field on every sample.

    Returns:
        names (`source.field`), titles, effects [S, G].
    """
    table = tokenizer.slot_table
    base = logit(histories)
    names, titles, effects = [], [], []
    for i, slot in enumerate(tokenizer.slots):
        without = _without(histories, int(table.source[i]), int(table.column[i]), slot.ids()[0])
        names.append(f"{slot.owner}.{slot.field}")
        titles.append(f"{slot.owner} {slot.title}".replace("_", " "))
        effects.append(base - logit(without))
    return names, titles, np.stack(effects, axis=1) if effects else np.zeros((len(base), 0))


def field_reasons(
    names: list[str], titles: list[str], effects: np.ndarray, count: int = 4
) -> tuple[Reason, ...]:
    """The strongest fields of one sample; effects [G]."""
    order = [g for g in np.argsort(-np.abs(effects)) if abs(effects[g]) > 1e-6][:count]
    return tuple(Reason(names[g], titles[g], "", float(effects[g])) for g in order)


def _without(histories: Histories, source: int, column: int, missing: int) -> Histories:
    """The histories with one field missing everywhere; source below zero: profile or context."""
    if source < 0:
        code, value = histories.queries.code.copy(), histories.queries.value.copy()
        code[:, column], value[:, column] = missing, 0.0
        queries = dataclasses.replace(histories.queries, code=code, value=value)
        return dataclasses.replace(histories, queries=queries)
    events = histories.events
    code, value = events.code.copy(), events.value.copy()
    rows = events.source == source
    code[rows, column], value[rows, column] = missing, 0.0
    return dataclasses.replace(
        histories, events=dataclasses.replace(events, code=code, value=value)
    )
