"""Kafka in memory, and the clients of it that stand in for aiokafka's.

`tests/contract/test_kafka_clients.py` holds them to the behaviour of the real ones. Time is the running loop's alone.
A test gives `partial(MemoryConsumer, cluster)` and `partial(MemoryProducer, cluster)` in the place of the real classes.
"""
