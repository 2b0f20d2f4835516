"""Experiments: runs on the asynchronous insides (links, brokers, sessions) that end in result frames."""
