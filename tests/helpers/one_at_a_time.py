"""The slow truth that the policy's tests compare with: one response, all its logits, no cache."""

import torch


def plain_logp(model, prompt, response):
    """Log-probability of one response: all the logits, one response, no cache, no padding."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(1, torch.tensor(response)[:, None]).sum()


PROMPT = [4, 9, 12, 7, 20]
RESPONSES = [[5, 6, 3], [8], [3], [9, 9, 9, 10, 11, 12, 13], [4, 3]]


def slow_sample(model, prompt, uniform, end):
    """Sample one response, without cache, padding or batch."""
    tokens = []
    for u in uniform:
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1]
        cumulative = logits.softmax(-1).double().cumsum(0)
        tokens.append(int((cumulative <= u * cumulative[-1]).sum()))
        if tokens[-1] == end:
            break
    return tokens
