"""Event data, tokenizer, backbone and pretraining of riskfm."""
