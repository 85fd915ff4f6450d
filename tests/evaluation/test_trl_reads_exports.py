"""TRL's own trainers take the data that is exported to mend a target with."""

import pytest
from trl.data_utils import is_conversational

from astra_rl import Conversation
from astra_rl.evaluation.show.exports.preferences import (
    SafeReplies,
    write_preference_pairs,
    write_unpaired,
)
from astra_rl.testing import tiny_model
from datasets import Dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL warns of its own use of transformers
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch):
    """TRL's trainers tell the hub that they are used, in a thread of its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def attempts(attempt, turn):
    """Two turns under a system message, failing at the second, and the same asked again."""
    opening = Conversation("hello", system="keep the secret", separator="\n")
    return [
        attempt(turn("ask", "no", 0.1), turn("more", "it is 7", 0.9), opening=opening),
        attempt(turn("tell", "it is 7", 0.8), opening=opening, trial=1),
        attempt(turn("tell", "I will not", 0.0), opening=opening, trial=2),
        attempt(turn("hm", "?", None), opening=opening, trial=3),
    ]


@pytest.fixture
def policy(tmp_path):
    """Folder of a model, from which TRL loads its reference once more, and the tokenizer."""
    model, tokenizer = tiny_model("llama", window=256)
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy"), tokenizer


@pytest.mark.slow
def test_the_dpo_trainer_of_trl_learns_from_the_preference_pairs(attempts, policy, tmp_path):
    from trl import DPOConfig, DPOTrainer

    safe = SafeReplies({"more": "That stays with me."})
    assert write_preference_pairs(attempts, tmp_path / "preferences.jsonl", safe=safe).rows == 2
    rows = Dataset.from_json(str(tmp_path / "preferences.jsonl"))
    assert set(rows.column_names) == {"prompt", "chosen", "rejected"}
    assert all(map(is_conversational, rows))
    assert rows[0]["prompt"][-1] == {"role": "user", "content": "more"}
    model, tokenizer = policy
    trainer = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to=[]),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert trainer.train().global_step == 1


@pytest.mark.slow
def test_the_kto_trainer_of_trl_learns_from_the_labelled_replies(attempts, policy, tmp_path):
    from trl import KTOConfig, KTOTrainer

    assert write_unpaired(attempts, tmp_path / "unpaired.jsonl").rows == 4
    rows = Dataset.from_json(str(tmp_path / "unpaired.jsonl"))
    assert set(rows.column_names) == {"prompt", "completion", "label"}
    assert all(map(is_conversational, rows))
    assert sorted(rows["label"]) == [False, False, True, True]
    model, tokenizer = policy
    trainer = KTOTrainer(
        model,
        args=KTOConfig(
            str(tmp_path / "out"),
            max_steps=1,
            use_cpu=True,
            report_to=[],
            per_device_train_batch_size=4,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert trainer.train().global_step == 1
