"""The reference's tokenizer: byte-level BPE of exactly 1024 tokens, trained on the train split.

A newline is always a token of its own, so a generation stops cleanly where its line ends.
"""

from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bitsweep.reference.text import documents

VOCABULARY = 1024
BOS, EOS = "<bos>", "<eos>"
_DOCUMENTS = 20_000  # about 5 MB of text


def train_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer; `max_length` is the model's, in tokens. A text begins with `<bos>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = (f"{document}\n\n" for document in islice(documents("train"), _DOCUMENTS))
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS)), (EOS, tokenizer.token_to_id(EOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def save_tokenizer(folder: Path, max_length: int) -> PreTrainedTokenizerFast:
    """Train and write the HF tokenizer files into `folder`."""
    tokenizer = train_tokenizer(max_length)
    tokenizer.save_pretrained(folder)
    return tokenizer
