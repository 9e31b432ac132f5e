from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

path = resolve_target("embedded")  # or the repository or folder of your own target
tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16")
drafter = AutoDrafter.from_pretrained(resolve_drafter("embedded"), dtype="bfloat16")
messages = [{"role": "user", "content": "Write a short email that thanks a colleague for their help."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**inputs, assistant_model=drafter, max_new_tokens=128)
print(tokenizer.decode(out[0], skip_special_tokens=True), drafter.last_stats, sep="\n")
