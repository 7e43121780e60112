"""eef: tuning LLM agents on their experts' failures (arXiv 2504.13145)."""

import logging
import warnings

# Said on every import by libraries below us, about nothing that a reader of a notebook can change.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
