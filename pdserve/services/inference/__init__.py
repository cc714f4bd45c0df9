"""The Open Inference Protocol: models, requests and answers, over HTTP and gRPC alike.

As https://github.com/kserve/open-inference-protocol has it, with extensions that Triton Inference Server
documents (classification, statistics, model configuration, binary tensor data, the model repository).
"""
