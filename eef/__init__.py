"""eef: tuning LLM agents on their experts' failures (arXiv 2504.13145)."""
