"""The command line of microgpt."""
