"""A trained model in use: prompts, replies, streams and scores."""
