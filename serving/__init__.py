"""The scoring service and the command line of riskfm."""
