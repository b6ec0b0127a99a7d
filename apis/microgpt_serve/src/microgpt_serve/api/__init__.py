"""The HTTP interface: routes, request and response types, documentation, the page."""
