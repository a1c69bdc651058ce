#include "json.h"

#include <cmath>
#include <cstdlib>

#include "refused.h"

namespace edge {

constexpr int kDeepest = 64;

class JsonReader {
 public:
  JsonReader(const Bytes& text, std::string where) : text_(text.begin(), text.end()), where_(std::move(where)) {}

  Json document() {
    Json found = value(where_, 0);
    blanks();
    if (at_ != text_.size()) fail();
    return found;
  }

 private:
  [[noreturn]] void fail() const { throw Refused(where_ + " is no readable JSON (at byte " + std::to_string(at_) + ")"); }

  void blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }

  bool take(char wanted) {
    blanks();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void need(char wanted) {
    if (!take(wanted)) fail();
  }

  bool word(const std::string& wanted) {
    if (text_.compare(at_, wanted.size(), wanted) != 0) return false;
    at_ += wanted.size();
    return true;
  }

  Json value(const std::string& place, int depth) {
    if (depth > kDeepest) throw Refused(where_ + " is nested deeper than any manifest");
    Json found;
    found.place_ = place;
    blanks();
    if (take('{')) {
      object(found, depth);
    } else if (take('[')) {
      list(found, depth);
    } else if (at_ < text_.size() && text_[at_] == '"') {
      found.kind_ = Json::Kind::text;
      found.text_ = string();
    } else if (word("true") || word("false")) {
      found.kind_ = Json::Kind::boolean;
    } else if (!word("null")) {
      found.kind_ = Json::Kind::number;
      found.number_ = number();
    }
    return found;
  }

  void object(Json& found, int depth) {
    found.kind_ = Json::Kind::object;
    if (take('}')) return;
    do {
      blanks();
      const std::string name = string();
      need(':');
      if (!found.object_.emplace(name, value(found.place_ + ": " + name, depth + 1)).second) fail();
    } while (take(','));
    need('}');
  }

  void list(Json& found, int depth) {
    found.kind_ = Json::Kind::list;
    if (take(']')) return;
    do {
      found.list_.push_back(value(found.place_ + "[" + std::to_string(found.list_.size()) + "]", depth + 1));
    } while (take(','));
    need(']');
  }

  double number() {
    const std::size_t end = text_.find_first_not_of("+-.0123456789eE", at_);
    const std::string digits = text_.substr(at_, end == std::string::npos ? end : end - at_);
    char* stop = nullptr;
    const double found = std::strtod(digits.c_str(), &stop);
    if (digits.empty() || *stop != '\0' || !std::isfinite(found)) fail();
    at_ += digits.size();
    return found;
  }

  std::string string() {
    if (at_ >= text_.size() || text_[at_] != '"') fail();
    std::string found;
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (static_cast<unsigned char>(text_[at_]) < 0x20) fail();
      if (text_[at_] == '\\') {
        ++at_;
        escaped(found);
      } else {
        found += text_[at_];
      }
    }
    if (at_++ >= text_.size()) fail();
    return found;
  }

  void escaped(std::string& found) {
    static const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
    if (at_ >= text_.size()) fail();
    if (text_[at_] != 'u') {
      const std::size_t which = from.find(text_[at_]);
      if (which == std::string::npos) fail();
      found += to[which];
      return;
    }
    unsigned long code = hexadecimal();
    if (code >= 0xd800 && code < 0xdc00) {  // the first half of a pair
      if (text_.compare(at_ + 1, 2, "\\u") != 0) fail();
      at_ += 2;
      const unsigned long low = hexadecimal();
      if (low < 0xdc00 || low > 0xdfff) fail();
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    utf8(found, code);
  }

  unsigned long hexadecimal() {
    const std::string digits = text_.substr(at_ + 1 < text_.size() ? at_ + 1 : text_.size(), 4);
    if (digits.size() != 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) fail();
    at_ += 4;
    return std::strtoul(digits.c_str(), nullptr, 16);
  }

  static void utf8(std::string& found, unsigned long code) {
    const auto tail = [&](int shift) { found += static_cast<char>(0x80 | (code >> shift & 0x3f)); };
    if (code < 0x80) {
      found += static_cast<char>(code);
    } else if (code < 0x800) {
      found += static_cast<char>(0xc0 | code >> 6), tail(0);
    } else if (code < 0x10000) {
      found += static_cast<char>(0xe0 | code >> 12), tail(6), tail(0);
    } else {
      found += static_cast<char>(0xf0 | code >> 18), tail(12), tail(6), tail(0);
    }
  }

  const std::string text_;
  const std::string where_;
  std::size_t at_ = 0;
};

Json Json::parse(const Bytes& text, const std::string& where) { return JsonReader(text, where).document(); }

void Json::wrong(const std::string& wanted) const { throw Refused(place_ + ": " + wanted + " is wanted"); }

const Json& Json::operator[](const std::string& name) const {
  const auto found = object_.find(name);
  if (kind_ != Kind::object || found == object_.end()) throw Refused(place_ + " has no " + name);
  return found->second;
}

const std::vector<Json>& Json::list() const {
  if (kind_ != Kind::list) wrong("a list");
  return list_;
}

const std::string& Json::text() const {
  if (kind_ != Kind::text) wrong("a text");
  return text_;
}

double Json::number() const {
  if (kind_ != Kind::number) wrong("a number");
  return number_;
}

std::size_t Json::count() const {
  const double found = number();
  if (found < 0 || found >= 2147483648.0 || found != std::floor(found)) wrong("a whole number, not negative,");
  return static_cast<std::size_t>(found);
}

// Bytes of the UTF-8 character at a place, 0 where there is none.
static std::size_t character(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(at), second = byte(at + 1);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  const bool twice = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);       // could be written shorter
  const bool beyond = (first == 0xed && second >= 0xa0) || (first == 0xf4 && second >= 0x90);  // half a pair, or no such number
  return twice || beyond ? 0 : length;
}

std::string quoted(const std::string& text) {
  std::string found = "\"";
  for (std::size_t at = 0; at < text.size();) {
    const char letter = text[at];
    const std::size_t length = character(text, at);
    if (letter == '"' || letter == '\\') {
      found += '\\', found += letter;
    } else if (static_cast<unsigned char>(letter) < 0x20) {
      const char* digits = "0123456789abcdef";
      found += std::string("\\u00") + digits[letter >> 4] + digits[letter & 15];
    } else {
      found += length ? text.substr(at, length) : "?";
    }
    at += length ? length : 1;
  }
  return found + '"';
}

std::string printable(const std::string& text) {
  std::string found;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = character(text, at);
    const auto letter = static_cast<unsigned char>(text[at]);
    found += length == 0 || letter < 0x20 || letter == 0x7f ? "?" : text.substr(at, length);
    at += length ? length : 1;
  }
  return found;
}

}  // namespace edge
