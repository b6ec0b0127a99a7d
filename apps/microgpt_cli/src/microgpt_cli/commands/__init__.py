"""One module per command; modules that several commands share are beside this folder."""
