"""The backbone: a causal transformer with one token per event and query tokens after the history.

Shapes: B batch, L events, K slots, X extra columns of an event, Q queries, P profile and context
slots, Y extra columns of a query, D width, E slot width, T forecast targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from foundation.attention import (
    Block,
    RMSNorm,
    Rotary,
    bidirectional_mask,
    causal_mask,
    query_mask,
)
from foundation.calendar_features import EVENT_EXTRA, QUERY_EXTRA
from foundation.errors import ArtifactError
from foundation.event_encoder import Fusion, Tables, TokenTable, layout_of, number_columns

if TYPE_CHECKING:
    from foundation.tokenizer import Tokenizer

INPUTS = (
    "source",
    "code",
    "value",
    "extra",
    "days",
    "query_days",
    "query_extra",
    "query_code",
    "query_value",
    "query_position",
)


class RiskBackboneConfig(PreTrainedConfig):
    """Sizes and what the weights were trained with.

    Attributes:
        width, layers, heads, hidden: D, blocks, attention heads, SwiGLU width of a block.
        fusion_hidden: SwiGLU width of the event encoder.
        slot_width: E. hash_rows, name_rows: rows of the value and name tables.
        knots: knots of the continuous value. extra, query_extra: X and Y.
        targets: names of the forecasts, in output order.
        activity_days: horizons of the automatic targets (any event and count per source).
        gap_edges_days: inner edges of the bins of the time to the next event.
        based: targets whose forecasts are added to the boosted forecasters' log-odds.
        distilled: targets whose boosted log-odds `readout` says from a query's state alone.
        ignored_extra: extra columns of events and queries that are read as zero, such as the month
            where the history is too short to have seen every month.
        bidirectional: events see all events before the query; one query per sequence.
        tokenizer_fingerprint, schema_fingerprint: what the weights belong to.
    """

    model_type = "riskfm-backbone"

    def __init__(
        self,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        hidden: int = 256,
        fusion_hidden: int = 128,
        slot_width: int = 64,
        hash_rows: int = 4096,
        name_rows: int = 512,
        knots: int = 16,
        extra: int = len(EVENT_EXTRA),
        query_extra: int = len(QUERY_EXTRA),
        dropout: float = 0.0,
        targets: Sequence[str] = (),
        activity_days: Sequence[int] = (30,),
        gap_edges_days: Sequence[float] = (
            1e-6,
            0.04,
            0.25,
            1.0,
            2.0,
            4.0,
            7.5,
            15.0,
            25.0,
            32.0,
            62.0,
            93.0,
            185.0,
        ),
        shortest_days: float = 1.0,
        longest_days: float = 2922.0,
        bidirectional: bool = False,
        ignored_extra: Sequence[str] = (),
        based: Sequence[str] = (),
        distilled: Sequence[str] = (),
        tokenizer_fingerprint: str = "",
        schema_fingerprint: str = "",
        **kwargs: Any,
    ) -> None:
        self.width = width
        self.layers = layers
        self.heads = heads
        self.hidden = hidden
        self.fusion_hidden = fusion_hidden
        self.slot_width = slot_width
        self.hash_rows = hash_rows
        self.name_rows = name_rows
        self.knots = knots
        self.extra = extra
        self.query_extra = query_extra
        self.dropout = dropout
        self.targets = list(targets)
        self.activity_days = list(activity_days)
        self.gap_edges_days = list(gap_edges_days)
        self.shortest_days = shortest_days
        self.longest_days = longest_days
        self.bidirectional = bidirectional
        self.ignored_extra = list(ignored_extra)
        self.based = list(based)
        self.distilled = list(distilled)
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.schema_fingerprint = schema_fingerprint
        super().__init__(**kwargs)


@dataclass
class BackboneOutput:
    """What the backbone says.

    Attributes:
        events: [B, L, D] state after each event, or before the last block where only queries were
            asked for; padding holds whatever came out.
        query: [B, Q, D] state of each query token.
        forecasts: [B, Q, T] logits of the declared outcomes.
        tables: the tables the tokens were read with.
    """

    events: torch.Tensor
    query: torch.Tensor
    forecasts: torch.Tensor
    tables: Tables


class RiskBackbone(PreTrainedModel):
    """Event encoder, causal history encoder, query tokens and forecast head.

    Bind a tokenizer before the first forward: `bind` derives every index from it, none of which is
    stored, so that the weights fit any tokenizer of any schema.
    """

    config_class = RiskBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "code"
    _no_split_modules = ["Block"]

    def __init__(self, config: RiskBackboneConfig) -> None:
        super().__init__(config)
        c = config
        self.tokens = TokenTable(c.slot_width, c.hash_rows, c.name_rows, c.knots)
        self.event_fusion = Fusion(c.slot_width, c.width, c.fusion_hidden, c.extra)
        self.query_fusion = Fusion(c.slot_width, c.width, c.fusion_hidden, c.query_extra)
        self.query_token = nn.Parameter(torch.zeros(c.width))
        self.rotary = Rotary(c.width // c.heads, c.shortest_days, c.longest_days)
        self.blocks = nn.ModuleList(
            Block(c.width, c.heads, c.hidden, c.dropout) for _ in range(c.layers)
        )
        self.final_norm = RMSNorm(c.width)
        self.forecast_head = _forecast_head(c.width, len(c.targets))
        self.readout = nn.Linear(c.width, len(c.distilled)) if c.distilled else None
        self._frozen: Tables | None = None
        self._numbers: tuple[list[int], list[int]] = ([], [])
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `transformers` does it, with the weights in memory of their own.

        Mapped from a file they lie at any multiple of 8 bytes, and some processors add up in
        another order then: a restored model would differ from the saved one in the last bits.
        """
        found = super().from_pretrained(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        for weights in model.parameters():
            weights.data = weights.data.clone()
        return found

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fan-in scaled matrices, the last of each block smaller with depth; zero biases."""
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.1)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Block):
            depth = (2 * self.config.layers) ** -0.5
            for last in (module.attention_out, module.mlp_out):
                init.normal_(last.weight, std=depth * last.in_features**-0.5)
        elif isinstance(module, RiskBackbone):
            init.normal_(module.query_token, std=0.02)
            init.normal_(module.forecast_head.weight, std=0.02)
            if module.readout is not None:
                init.normal_(module.readout.weight, std=0.02)

    @property
    def layout(self) -> dict[str, torch.Tensor]:
        """Index tensors of the bound tokenizer.

        Raises:
            ArtifactError: no tokenizer is bound.
        """
        found = {
            name.removeprefix("layout_"): tensor
            for name, tensor in self.named_buffers(recurse=False)
            if name.startswith("layout_")
        }
        if not found:
            raise ArtifactError("this backbone has no tokenizer yet; call bind(tokenizer) first")
        return found

    def bind(self, tokenizer: Tokenizer) -> RiskBackbone:
        """Take a tokenizer's codes: of the schema trained on, extended, or of another schema.

        Raises:
            ArtifactError: the tokenizer makes other numbers of extra columns than the weights read.
        """
        if (self.config.extra, self.config.query_extra) != (len(EVENT_EXTRA), len(QUERY_EXTRA)):
            raise ArtifactError(
                f"the weights read {self.config.extra} and {self.config.query_extra} extra columns "
                f"of events and queries, this version makes {len(EVENT_EXTRA)} and "
                f"{len(QUERY_EXTRA)}; pretrain again"
            )
        layout = layout_of(tokenizer, self.config.hash_rows, self.config.name_rows)
        for name, tensor in layout.tensors().items():
            self.register_buffer(f"layout_{name}", tensor.to(self.device), persistent=False)
        self._frozen, self._numbers = None, number_columns(layout)
        return self

    def tables(self) -> Tables:
        """Embeddings of all codes and sources; the frozen ones after `freeze_tables`."""
        return self.tokens(self.layout) if self._frozen is None else self._frozen

    def freeze_tables(self) -> RiskBackbone:
        """Compute the tables of codes and sources once, for inference and export."""
        with torch.no_grad():
            self._frozen = Tables(*(t.detach().clone() for t in self.tokens(self.layout)))
        return self

    def thaw_tables(self) -> RiskBackbone:
        """Compute the tables afresh in every forward, as training needs."""
        self._frozen = None
        return self

    def resize_targets(self, targets: Sequence[str]) -> RiskBackbone:
        """Set the forecast targets; those kept by name keep their weights, new ones start fresh."""
        old, names = self.forecast_head, list(targets)
        head = _forecast_head(self.config.width, len(names)).to(self.device, self.dtype)
        with torch.no_grad():
            init.normal_(head.weight, std=0.02)
            init.zeros_(head.bias)
            for i, name in enumerate(names):
                if name in self.config.targets:
                    j = self.config.targets.index(name)
                    head.weight[i], head.bias[i] = old.weight[j], old.bias[j]
        self.forecast_head = head
        self.config.targets = names
        return self

    def encode_tokens(
        self,
        source: torch.Tensor,
        code: torch.Tensor,
        value: torch.Tensor,
        extra: torch.Tensor,
        tables: Tables | None = None,
    ) -> torch.Tensor:
        """[B, L, D] vectors of events before any of them has seen another.

        Args:
            tables: those of this step, where they are at hand already.
        """
        tables = self.tables() if tables is None else tables
        slots = self.tokens.slots(tables, code, value, self._numbers[0])
        sources = F.embedding(source, tables.source)
        return self.event_fusion(slots + sources, self._read(extra, EVENT_EXTRA))

    def encode_queries(
        self,
        query_code: torch.Tensor,
        query_value: torch.Tensor,
        query_extra: torch.Tensor,
        tables: Tables | None = None,
    ) -> torch.Tensor:
        """[B, Q, D] vectors of queries: profile, context and what is known of the moment."""
        tables = self.tables() if tables is None else tables
        slots = self.tokens.slots(tables, query_code, query_value, self._numbers[1])
        query_extra = self._read(query_extra, QUERY_EXTRA)
        return self.query_fusion(slots, query_extra) + self.query_token

    def _read(self, extra: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """Extra columns, the ignored ones zero."""
        ignored = self.config.ignored_extra
        if not ignored:
            return extra
        return extra * extra.new_tensor([float(name not in ignored) for name in names])

    def contextualise(
        self,
        events: torch.Tensor,
        days: torch.Tensor,
        queries: torch.Tensor,
        query_days: torch.Tensor,
        query_position: torch.Tensor,
        queries_only: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the blocks.

        Args:
            events: [B, L, D]; days: [B, L]; queries: [B, Q, D]; query_days: [B, Q];
            query_position: [B, Q] int64.
            queries_only: leave the events where they enter the last block, whose queries are the
                same either way; two fifths of the work of two blocks.

        Returns:
            [B, L, D] and [B, Q, D], normalised.
        """
        length = events.shape[1]
        index = torch.arange(length, device=events.device, dtype=days.dtype).expand_as(days)
        event_angles = self.rotary(index, days)
        query_angles = self.rotary(query_position.to(days.dtype), query_days)
        seen = query_mask(query_position, length)
        both = None  # causal
        if self.config.bidirectional:
            both = bidirectional_mask(query_position, length)
        elif torch.jit.is_tracing() and not (queries_only and len(self.blocks) == 1):
            both = causal_mask(events)  # once for all layers
        *blocks, last = self.blocks
        for block in blocks:
            events, queries = block(events, queries, event_angles, query_angles, both, seen)
        if queries_only:
            queries = last.look(queries, last.keys(events, event_angles), query_angles, seen)
        else:
            events, queries = last(events, queries, event_angles, query_angles, both, seen)
        return self.final_norm(events), self.final_norm(queries)

    def forward(
        self,
        source: torch.Tensor,
        code: torch.Tensor,
        value: torch.Tensor,
        extra: torch.Tensor,
        days: torch.Tensor,
        query_days: torch.Tensor,
        query_extra: torch.Tensor,
        query_code: torch.Tensor,
        query_value: torch.Tensor,
        query_position: torch.Tensor,
        queries_only: bool = False,
    ) -> BackboneOutput:
        """Encode histories and their queries.

        Args:
            source: [B, L] int64; code: [B, L, K] int64; value: [B, L, K]; extra: [B, L, X];
            days: [B, L] since the entity's first event; query_days: [B, Q]; query_extra: [B, Q, Y];
            query_code: [B, Q, P] int64; query_value: [B, Q, P];
            query_position: [B, Q] int64, number of leading events each query may see.
            queries_only: as for `contextualise`.
        """
        tables = self.tables()
        events = self.encode_tokens(source, code, value, extra, tables)
        queries = self.encode_queries(query_code, query_value, query_extra, tables)
        events, queries = self.contextualise(
            events, days, queries, query_days, query_position, queries_only
        )
        return BackboneOutput(events, queries, self.forecast_head(queries), tables)


def _forecast_head(width: int, count: int) -> nn.Linear:
    """The forecast head, of no rows where there is no target (torch warns about drawing none)."""
    head = nn.Linear(width, max(count, 1))
    if not count:
        head.out_features = 0
        head.weight, head.bias = (nn.Parameter(p.detach()[:0]) for p in (head.weight, head.bias))
    return head
