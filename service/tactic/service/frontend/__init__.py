"""The gRPC front end: one thin module per service, and `turns`, which runs a turn."""
