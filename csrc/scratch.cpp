#include <cstdlib>
#include <new>
#include <vector>

#include "problem.h"

namespace cbam {

namespace {

constexpr size_t kAlign = 64;
constexpr size_t kFirstBlock = 1 << 20;
constexpr size_t kKept = 64 << 20;  // more than this is not kept between calls

struct Block {
  char* memory;
  size_t size, used;
};

class Stack {
 public:
  ~Stack() { release(); }

  void* take(size_t bytes) {
    bytes = rounded(bytes);
    while (current_ < blocks_.size() && blocks_[current_].size - blocks_[current_].used < bytes) {
      if (current_ + 1 == blocks_.size()) add(bytes);
      ++current_;
    }
    if (blocks_.empty()) add(bytes);
    Block& block = blocks_[current_];
    void* memory = block.memory + block.used;
    block.used += bytes;
    taken_ += bytes;
    return memory;
  }

  void give_back(size_t bytes) {
    bytes = rounded(bytes);
    while (blocks_[current_].used == 0 && current_ > 0) --current_;
    blocks_[current_].used -= bytes;
    taken_ -= bytes;
    if (taken_ > 0) return;
    current_ = 0;
    if (blocks_.size() > 1 || total_ > kKept) {
      const size_t wanted = total_;
      release();
      if (wanted <= kKept) add(wanted);  // one block that is large enough next time
    }
  }

 private:
  static size_t rounded(size_t bytes) { return (bytes / kAlign + 1) * kAlign; }

  void add(size_t bytes) {
    const size_t size = rounded(bytes > kFirstBlock ? bytes : kFirstBlock);
    blocks_.push_back({static_cast<char*>(::operator new(size, std::align_val_t(kAlign))), size, 0});
    total_ += size;
  }
  void release() {
    for (const Block& block : blocks_) ::operator delete(block.memory, std::align_val_t(kAlign));
    blocks_.clear();
    total_ = current_ = 0;
  }

  std::vector<Block> blocks_;
  size_t current_ = 0, taken_ = 0, total_ = 0;
};

thread_local Stack stack;

}  // namespace

void* take_scratch(size_t bytes) { return stack.take(bytes); }
void return_scratch(size_t bytes) { stack.give_back(bytes); }

}  // namespace cbam
