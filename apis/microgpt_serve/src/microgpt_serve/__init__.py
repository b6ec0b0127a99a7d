"""An HTTP service around a microgpt model."""
