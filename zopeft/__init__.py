"""Zeroth-order fine-tuning of Hugging Face language models."""
