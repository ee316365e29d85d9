"""What `immortal_training.py` needs beside the training itself: board, chaos, display, story."""
