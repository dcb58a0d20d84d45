"""The demo and what measures quality and speed. Nothing here is needed to run the flows."""
