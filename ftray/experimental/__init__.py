"""APIs that Ray calls experimental."""
