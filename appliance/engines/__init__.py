"""Trade floor: who answers a request, and how to speak to it.

types (the words that cross rooms) · router (the one entrance) · aliases · receipts · pacing (one piece → a stream)
chunks (OpenAI-shaped streams, read and written) · backends/ (contract, table, hosted, demo) · lora (adapters as they are wanted, with
lora_plan, lora_held, lora_hosts, lora_readings, lora_rules, lora_file, lora_orders,
lora_orders_file)
"""
