"""RQ-KMeans: vectors become code tuples; each stage clusters the residuals that the last one left (ChoirRec, semantic group generation, step 3)."""

from pydantic import Field

from longtail.settings import Compute, Settings


class CodebookSettings(Settings):
    """One residual codebook [num_stages, codebook_size, dim]."""

    num_stages: int = Field(2, ge=1, le=8)
    codebook_size: int = Field(16, ge=2)
    iterations: int = Field(20, ge=1)
    min_rows_per_code: float = Field(4.0, ge=1, description="refused when rows < codebook_size * this")
    block_rows: int = Field(4096, ge=1, description="rows summed at a time; fixed, so that one seed gives one codebook for any number of shards")
    compute: Compute = Compute(num_actors=2, num_cpus=0.5)


class CodesSettings(Settings):
    """The `codes` stage: users and items."""

    user: CodebookSettings = CodebookSettings(num_stages=2, codebook_size=8)
    item: CodebookSettings = CodebookSettings(num_stages=3, codebook_size=32)
