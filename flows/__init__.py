"""When things happen: the flows and the command line."""
