//! Why virt-v2v failed, in one sentence with what to do (virt-v2v-output.md 4). Pure.
