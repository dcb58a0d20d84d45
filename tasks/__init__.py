"""What a run does: one file per stage, in the order of the DAG, and the rooms they share."""
