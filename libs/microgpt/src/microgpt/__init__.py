"""A GPT small enough to read in one sitting, and fast enough to use.

    >>> import microgpt
    >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100, seed=42)
    >>> model.generate(num_samples=2, seed=42)
    ['hannah', 'anna']

`fit`, `load` and `LanguageModel` are the whole library for most uses; the parts below them are
public too. Everything else may change without notice.
"""

from microgpt.autograd import Value
from microgpt.corpus.dataset import Batch, Batches, Dataset
from microgpt.corpus.readers import (
    Conversations,
    read_conversations,
    read_documents,
    read_json_lines,
)
from microgpt.data import Message, Tokenizer
from microgpt.engines import ENGINES, unavailable_engines
from microgpt.engines.decoding import SamplingConfig, StopSignal, generate, generate_from_prompt
from microgpt.errors import (
    ChatError,
    CheckpointError,
    ConfigError,
    ContextLengthError,
    DataError,
    EngineError,
    MicrogptError,
    NonFiniteLossError,
    RankLostError,
    SamplingError,
    ShapeError,
    TokenError,
)
from microgpt.inference.language_model import ChatReply, LanguageModel, load
from microgpt.inference.prompt import ChatPrompt, build_prompt
from microgpt.inference.score import Score
from microgpt.inference.stream import TextStream
from microgpt.model import GPT, InferenceGPT, KVCache, ModelConfig
from microgpt.storage.model_directory import check_writable, holds_model
from microgpt.training.fit import fit, prepare
from microgpt.training.ranks import Ranks
from microgpt.training.snapshot import (
    Snapshot,
    holds_snapshot,
    read_snapshot,
    remove_snapshots,
    restore,
    write_snapshot,
)
from microgpt.training.trainer import (
    Adam,
    Best,
    StepReport,
    TrainConfig,
    Trainer,
    Validation,
    train_step,
)

__all__ = [
    "ENGINES",
    "GPT",
    "Adam",
    "Batch",
    "Batches",
    "Best",
    "ChatError",
    "ChatPrompt",
    "ChatReply",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "Conversations",
    "DataError",
    "Dataset",
    "EngineError",
    "InferenceGPT",
    "KVCache",
    "LanguageModel",
    "Message",
    "MicrogptError",
    "ModelConfig",
    "NonFiniteLossError",
    "RankLostError",
    "Ranks",
    "SamplingConfig",
    "SamplingError",
    "Score",
    "ShapeError",
    "Snapshot",
    "StepReport",
    "StopSignal",
    "TextStream",
    "TokenError",
    "Tokenizer",
    "TrainConfig",
    "Trainer",
    "Validation",
    "Value",
    "build_prompt",
    "check_writable",
    "fit",
    "generate",
    "generate_from_prompt",
    "holds_model",
    "holds_snapshot",
    "load",
    "prepare",
    "read_conversations",
    "read_documents",
    "read_json_lines",
    "read_snapshot",
    "remove_snapshots",
    "restore",
    "train_step",
    "unavailable_engines",
    "write_snapshot",
]
