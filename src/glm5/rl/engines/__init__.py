"""What makes the rollouts: our own engine in this process, or a server of vLLM or SGLang, behind one small protocol."""
