"""The small base models, and how they were pretrained."""
