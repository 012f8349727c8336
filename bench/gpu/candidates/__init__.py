"""Who takes part: flashcupy and its peers, each optional. The libraries are imported by whoever prepares a call."""
