"""The model directory: formats, checks and atomic replacement of files."""
