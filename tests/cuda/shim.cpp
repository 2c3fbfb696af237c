// The autograd engine asks CUDA's hooks whether a device has a context. Without a device that is an error; here the
// answer is no.
#include <ATen/detail/CUDAHooksInterface.h>
#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

static bool no(const void*, signed char) { return false; }

template <class Method>
static void replace(void** table, Method method, void* with) {
  uintptr_t raw[2];
  std::memcpy(raw, &method, sizeof raw);
  void** slot = (void**)((char*)table + (raw[0] - 1));
  long page = sysconf(_SC_PAGESIZE);
  void* start = (void*)((uintptr_t)slot & ~(uintptr_t)(page - 1));
  mprotect(start, 2 * page, PROT_READ | PROT_WRITE);
  *slot = with;
}

extern "C" void pretend() {
  const at::CUDAHooksInterface& hooks = at::detail::getCUDAHooks();
  replace(*(void***)&hooks, &at::CUDAHooksInterface::hasPrimaryContext, (void*)&no);
}
