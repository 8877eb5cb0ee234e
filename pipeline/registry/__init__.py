"""The MLflow edge: recording runs, registering tuned prompts, promoting them. No other package imports mlflow."""
