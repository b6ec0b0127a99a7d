"""One module per command; what several of them need stands beside this folder."""
