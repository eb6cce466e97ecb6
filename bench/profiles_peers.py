"""What else answers profile prompts, for the bench: vLLM asked directly, and transformers' generate in batches of 8.

Each has the process's OpenMP threads to itself, as it would in a process of its own: a second thread with a team of them would slow all sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.engine import Prompt, VllmEngine, conversation
from longtail.packaged_models import resolve
from longtail.profiles import ProfilesSettings

BATCH = 8  # as the ChoirRec author's demo asks its model


class Watch:
    """What an engine has answered, in the order in which it was asked."""

    def __init__(self, llm: Any) -> None:
        self._outputs: list[Any] = []
        step = llm.llm_engine.step

        def watched() -> list[Any]:
            outputs: list[Any] = step()
            self._outputs += [output for output in outputs if output.finished]
            return outputs

        llm.llm_engine.step = watched

    def taken(self) -> list[Any]:
        """vLLM's outputs since the last call."""
        outputs, self._outputs = sorted(self._outputs, key=lambda output: int(output.request_id)), []
        return outputs


@dataclass
class Chat:
    """LLM.chat of a round's prompts in one call."""

    engine: VllmEngine
    watch: Watch
    outputs: list[list[Any]] = field(default_factory=list)  # by round

    def run(self, prompts: Sequence[Prompt]) -> list[str]:
        """The texts, in order."""
        options = {"use_tqdm": False, "chat_template_kwargs": {"enable_thinking": False}}
        messages, sampling = [conversation(prompt) for prompt in prompts], self.engine.sampling(prompts)
        outputs = self.engine.feed.call(lambda: self.engine.llm.chat(messages, sampling, **options))
        self.outputs.append(self.watch.taken())
        return [output.outputs[0].text for output in outputs]


@dataclass
class Generate:
    """transformers' generate, greedy, in the weights' own dtype, padded on the left."""

    engine: VllmEngine  # whose thread it borrows
    settings: ProfilesSettings
    ids: list[list[int]] = field(default_factory=list)  # of all prompts
    new_tokens: int = 0

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = resolve(self.settings.model)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")

    def run(self, prompts: Sequence[Prompt]) -> None:
        """Answer them all."""
        self.engine.feed.call(lambda: self._run(prompts))

    def _run(self, prompts: Sequence[Prompt]) -> None:
        import torch

        for start in range(0, len(prompts), BATCH):
            asked = [conversation(prompt) for prompt in prompts[start : start + BATCH]]
            batch = self._tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True)
            with torch.inference_mode():
                tokens = self._model.generate(
                    **batch, do_sample=False, max_new_tokens=self.settings.max_output_tokens, pad_token_id=self._tokenizer.pad_token_id
                )
            said = tokens[:, batch["input_ids"].shape[1] :]
            self._tokenizer.batch_decode(said, skip_special_tokens=True)
            self.new_tokens += int((said != self._tokenizer.pad_token_id).sum())
            self.ids += [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
