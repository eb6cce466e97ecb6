"""The rankers' settings; each part of a published method can be switched off."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from longtail.settings import Settings

Head = Literal["outcome", "cvr", "conversion"]
RankerName = Literal["base", "choirrec", "saviorrec", "duet"]
Width = Annotated[int, Field(ge=1)]

# Its default is not the same in every ranker.
PeerStats = Annotated[bool, Field(description="what the user's peers did with the item, put straight into the individual side (ours)")]


class TowerSettings(Settings):
    """What all rankers share: the DIN-style individual side."""

    heads: tuple[Head, ...] | None = Field(None, description="None: the ranker's own choice of those that the source allows")
    id_dim: int = Field(16, ge=1)
    attribute_dim: int = Field(4, ge=1)
    hidden_dims: tuple[Width, ...] = Field((128, 64), min_length=1)
    own_counts: bool = Field(
        True, description="what the user did with the item's kind, and how popular and new the item is; off: a weak ranker, to compare with"
    )
    match_counts: Literal["none", "categories", "codes"] = Field(
        "codes",
        description="of what the user did with the item's kind: none, the item itself alone | by category and brand | by semantic codes too",
    )
    collaborative_stats: bool = Field(
        True, description="collaborative-filtering scores, put straight into the individual side (where [collaborative] makes any)"
    )
    peer_stats: PeerStats = False
    attention_dims: tuple[Width, ...] = (32,)
    dropout: float = Field(0.0, ge=0, lt=1)


class BaseSettings(TowerSettings):
    """The DIN-style base."""


class ChoirRecSettings(TowerSettings):
    """ChoirRec's parts (group-aware hierarchical representation, group-aware multi-granularity module)."""

    group_id_fusion: bool = True
    attribute_completion: bool = True
    group_sequence: bool = True
    group_peer_stats: bool = Field(True, description="what the user's peers did with the item, in the group channel (ours, where [peers] makes any)")
    injection: bool = True
    adaptive_fusion: bool = Field(True, description="off: both channels weigh one half")
    distillation: bool = True
    group_dim: int = Field(16, ge=1)
    distill_weight: float = Field(0.005, ge=0, description="the paper's lambda")
    distill_margin: float = Field(0.1, ge=0)
    distill_teacher: Literal["individual", "group"] = "individual"
    min_purchases: float = Field(2.0, ge=0, description="hard gate theta_act")
    min_confidence: float = Field(0.1, ge=0, le=0.5, description="hard gate theta_conf")
    low_activity_purchases: float = Field(5.0, ge=0, description="below it the low-activity flag is 1")
    distill_gate: Literal["learned", "normalised"] = Field(
        "learned", description="learned: as published, alpha_distill can switch its own term off | normalised: it only shares it out among the rows (ours)"
    )
    support_gate: bool = Field(False, description="nothing is fused or injected for a user to whom nobody lends (ours)")
    gate_evidence: bool = Field(False, description="the gates also see how much is lent and how sure each channel is (ours)")
    channel_loss_weight: float = Field(0.0, ge=0, description="of each channel's own cross entropy, so that both are calibrated before they are fused (ours)")


class SemanticSettings(Settings):
    """What SaviorRec knows of items by their vectors and codes."""

    semantic_vector: bool = Field(True, description="off: the frozen vector is not used, only what MBA learns on the codes")
    semantic_dim: int = Field(32, ge=1, description="width to which the aligned vector is projected for the tower")
    alignment: bool = Field(True, description="MBA: zero-initialised codebooks added to the frozen vector")
    semantic_to_behaviour: bool = Field(True, description="attention branch (a): semantic scores pool ID embeddings")
    behaviour_to_semantic: bool = Field(True, description="attention branch (b): ID scores pool semantic vectors")
    similarity: Literal["none", "tiers", "kernels"] = Field(
        "kernels",
        description="how much of the history is how near to the item, straight into the tower (ours): tiers, by the frozen vectors | kernels, by the aligned "
        "ones, which learn from it",
    )
    content_gate: bool = Field(False, description="an item's ID embedding gives way to its content, the less the more training rows it has (ours)")
    content_weight: float = Field(0.0, ge=0, description="of the pull of content towards the ID embeddings of items with many rows; needs content_gate (ours)")
    alignment_shrinkage: float = Field(50.0, ge=0, description="a code's alignment counts n / (n + this), n its training rows; 0: in full, as published (ours)")
    alignment_decay: float = Field(1e-4, ge=0, description="L2 on the alignment, per row; 0 as published (ours)")
    alignment_rate: float = Field(0.3, gt=0, description="learning rate of the alignment, as a share of the others'; 1 as published (ours)")
    detached_pooling: bool = Field(False, description="branch (a) reads ID embeddings and does not teach them, so that it can't starve them (ours)")

    @model_validator(mode="after")
    def _kernels_have_vectors(self) -> Self:
        if self.similarity == "kernels" and not self.semantic_vector:
            raise ValueError(
                'similarity = "kernels" compares items by their vectors as MBA moves them, and semantic_vector = false leaves these at zero until MBA has '
                'learnt something, where a cosine has no gradient: set similarity = "none" or "tiers", or keep the vector'
            )
        return self


class SaviorRecSettings(TowerSettings, SemanticSettings):
    """SaviorRec's parts."""


class DuetSettings(ChoirRecSettings, SemanticSettings):
    """ChoirRec's user side and SaviorRec's item side; defaults that differ from theirs were chosen for both sides together (results/duet_*)."""

    peer_stats: PeerStats = True
    group_semantics: bool = Field(
        True,
        description="the group channel reads what the item side says of the user's own history, as the individual one does; off: of the group's alone (ours)",
    )


class RankersSettings(Settings):
    base: BaseSettings = BaseSettings()
    choirrec: ChoirRecSettings = ChoirRecSettings()
    saviorrec: SaviorRecSettings = SaviorRecSettings()
    duet: DuetSettings = DuetSettings()
