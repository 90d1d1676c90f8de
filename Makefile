protos:
	.venv/bin/python -m grpc_tools.protoc -Ihoming/protos=protos --python_out=.dev --pyi_out=.dev --grpc_python_out=.dev protos/*.proto
