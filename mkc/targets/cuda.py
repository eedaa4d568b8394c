from mkc.ir.target import Target
def target(device=None, arch=None, workers=None): raise NotImplementedError
class CudaKernel: pass
