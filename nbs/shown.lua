-- Of what nbdev's show_doc writes: leave out private names and methods without a docstring, and write types as `Audit`, not `__main__.Audit`.
local function described(cell, name) -- does the entry `name` in this cell belong on the page?
  if name:match '^_' or name:match '%._' then return false end
  local after, texts = false, 0
  cell:walk { traverse = 'topdown',
    CodeBlock = function() after = true end,
    Para = function() if after then texts = texts + 1 end end }
  return texts > 0 or not name:match '%.'
end

local function entry(cell) -- the name whose documentation a cell holds, or nil
  local name, signature
  cell:walk {
    Header = function(o) if o.level == 3 then name = name or pandoc.utils.stringify(o):gsub('%s', '') end end,
    CodeBlock = function(o) signature = signature or o.text:match '^%s*def ' or o.text:match '^%s*class ' or o.text:match '^%s*@' end }
  return signature and name
end

function Div(o)
  if not o.classes:includes 'cell' then return end
  local name = entry(o)
  if not name then return end
  if not described(o, name) then return {} end
  return o:walk { CodeBlock = function(c) c.text = c.text:gsub('__main__%.', ''); return c end }
end
