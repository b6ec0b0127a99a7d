"""A GPT small enough to read in one sitting, and fast enough to use.

    >>> import microgpt
    >>> model = microgpt.fit(["anna", "bob", "hannah", "otto"], steps=100, seed=42)
    >>> model.generate(num_samples=2, seed=42)
    ['hannah', 'anna']

`fit`, `load` and `LanguageModel` are the whole library for most uses; the parts below them are
public too. Everything else may change without notice.
"""

from microgpt.autograd import Value
from microgpt.corpus.batches import Batch, Batches
from microgpt.corpus.conversations import Conversations, read_conversations
from microgpt.corpus.dataset import Dataset
from microgpt.corpus.documents import Documents, read_documents
from microgpt.corpus.json_lines import read_json_lines
from microgpt.corpus.subwords import SubwordTokenizer
from microgpt.data import BaseTokenizer, Message, Tokenizer
from microgpt.drawing import Drawing, draw
from microgpt.engines import ENGINES, unavailable_engines
from microgpt.engines.decoding import (
    ChosenToken,
    SamplingConfig,
    StopSignal,
    generate,
    generate_from_prompt,
)
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
from microgpt.history import History, StepReport
from microgpt.inference.batch import LiveText, TextBatch
from microgpt.inference.language_model import LanguageModel
from microgpt.inference.loading import load
from microgpt.inference.prefixes import PrefixCache
from microgpt.inference.prompt import ChatPrompt, Prompt, Turns, build_prompt
from microgpt.inference.score import Score
from microgpt.inference.stream import ChatReply, Reply, TextStream
from microgpt.inference.trace import Trace
from microgpt.model import GPT, InferenceGPT, KVCache, ModelConfig
from microgpt.storage.commit import lock_directory, write_file
from microgpt.storage.model_directory import Origin, TrainingRecord, check_writable, holds_model
from microgpt.train import Adam, train_step
from microgpt.training.chat_options import chat_setup
from microgpt.training.fit import fit, fit_chat, prepare
from microgpt.training.options import TrainConfig
from microgpt.training.ranks import Ranks
from microgpt.training.snapshot import (
    Snapshot,
    holds_snapshot,
    read_snapshot,
    remove_snapshots,
    restore,
    write_snapshot,
)
from microgpt.training.trainer import Trainer
from microgpt.training.validation import Best, Validation

__all__ = [
    "ENGINES",
    "GPT",
    "Adam",
    "BaseTokenizer",
    "Batch",
    "Batches",
    "Best",
    "ChatError",
    "ChatPrompt",
    "ChatReply",
    "CheckpointError",
    "ChosenToken",
    "ConfigError",
    "ContextLengthError",
    "Conversations",
    "DataError",
    "Dataset",
    "Documents",
    "Drawing",
    "EngineError",
    "History",
    "InferenceGPT",
    "KVCache",
    "LanguageModel",
    "LiveText",
    "Message",
    "MicrogptError",
    "ModelConfig",
    "NonFiniteLossError",
    "Origin",
    "PrefixCache",
    "Prompt",
    "RankLostError",
    "Ranks",
    "Reply",
    "SamplingConfig",
    "SamplingError",
    "Score",
    "ShapeError",
    "Snapshot",
    "StepReport",
    "StopSignal",
    "SubwordTokenizer",
    "TextBatch",
    "TextStream",
    "TokenError",
    "Tokenizer",
    "Trace",
    "TrainConfig",
    "Trainer",
    "TrainingRecord",
    "Turns",
    "Validation",
    "Value",
    "build_prompt",
    "chat_setup",
    "check_writable",
    "draw",
    "fit",
    "fit_chat",
    "generate",
    "generate_from_prompt",
    "holds_model",
    "holds_snapshot",
    "load",
    "lock_directory",
    "prepare",
    "read_conversations",
    "read_documents",
    "read_json_lines",
    "read_snapshot",
    "remove_snapshots",
    "restore",
    "train_step",
    "unavailable_engines",
    "write_file",
    "write_snapshot",
]
