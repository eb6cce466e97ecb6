"""Groups: what the members of a code prefix have in common at one as_of (ChoirRec, group attribute completion and group behaviour sequence)."""

from pydantic import Field

from longtail.settings import Settings


class GroupsSettings(Settings):
    """The `groups` stage."""

    min_support: int = Field(2, ge=1, description="members with a value, before a majority is lent to the others")
    min_size: int = Field(3, ge=1, description="a user whose leaf group is smaller borrows from the parent prefix")
    sequence_categories: int = Field(6, ge=1, description="top categories over all purchases of the group")
    items_per_category: int = Field(3, ge=1)
    weight_by_lift: bool = Field(False, description="order categories by lift over the whole instead of by count (ours, not the paper's)")
